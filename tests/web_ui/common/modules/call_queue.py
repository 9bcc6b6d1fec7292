"""One job at a time, from page and API alike.

queue_lock   A1111    Forge    reForge
"""
import threading

queue_lock = threading.Lock()
