"""Measurement: what the machine is and what it can do."""

from verim.anatomy.calibration import Calibration, calibrate
from verim.anatomy.health import Finding, examine
from verim.anatomy.machine import machine_card

__all__ = ["Calibration", "Finding", "calibrate", "examine", "machine_card"]
