"""Measurement: what the machine is and what it can do; where the seconds, FLOPs and bytes of a training step go."""

from verim.anatomy.calibration import Calibration, calibrate
from verim.anatomy.ceilings import Ceilings, ceilings_of, measure_ceilings
from verim.anatomy.health import Finding, examine
from verim.anatomy.ledger import Module, Op, Part, Record
from verim.anatomy.machine import machine_card
from verim.anatomy.memory import Memory, ModuleMemory, Timeline
from verim.anatomy.recorder import Recording, record

__all__ = [
    "Calibration",
    "Ceilings",
    "Finding",
    "Memory",
    "Module",
    "ModuleMemory",
    "Op",
    "Part",
    "Record",
    "Recording",
    "Timeline",
    "calibrate",
    "ceilings_of",
    "examine",
    "machine_card",
    "measure_ceilings",
    "record",
]
