"""Drift detectors, and the monitor that feeds them."""
