"""Measurement: what the machine is and what it can do."""

from verim.anatomy.calibration import Calibration, calibrate
from verim.anatomy.machine import machine_card

__all__ = ["Calibration", "calibrate", "machine_card"]
