"""The parts of bench/monitor.py."""
