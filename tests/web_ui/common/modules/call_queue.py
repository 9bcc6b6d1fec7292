"""One job at a time, from page and API alike.

queue_lock   A1111 7   Forge 10   reForge 8
"""
import threading

queue_lock = threading.Lock()
