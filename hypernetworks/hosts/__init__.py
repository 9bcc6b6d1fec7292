"""The hosts: what runs the model. Each implements `host.Host`; nothing else knows their names."""
