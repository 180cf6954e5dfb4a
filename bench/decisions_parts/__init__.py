"""The parts of bench/decisions.py."""
