"""How bytes go from process to process; `parallel/comm.py` is the one user."""
