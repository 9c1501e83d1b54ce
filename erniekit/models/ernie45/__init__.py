"""ERNIE 4.5 (Baidu, 2025), the dense decoder."""
