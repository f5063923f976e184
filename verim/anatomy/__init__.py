"""Measurement: what the machine is and what it can do; where the seconds, FLOPs and bytes of a training step go."""

from verim.anatomy.advice import Advice, advise
from verim.anatomy.budgets import (
    StateBudget,
    activations_budget,
    length_of_activations,
    sharded_state_bytes,
    state_budget,
)
from verim.anatomy.calibration import Calibration, calibrate
from verim.anatomy.ceilings import Ceilings, ceilings_of, measure_ceilings
from verim.anatomy.convolution import Lowering, convolve_by_columns, lowering
from verim.anatomy.fits import check_fits, nearest
from verim.anatomy.health import Finding, examine
from verim.anatomy.ledger import Module, Op, Part, Record
from verim.anatomy.machine import machine_card
from verim.anatomy.memory import Memory, ModuleMemory, Timeline
from verim.anatomy.picture import memory_picture
from verim.anatomy.prediction import predict_memory, predict_step
from verim.anatomy.recorder import Recording, record
from verim.anatomy.trace import trace_of, write_trace
from verim.anatomy.workload import Workload, adamw, model_config

__all__ = [
    "Advice",
    "Calibration",
    "Ceilings",
    "Finding",
    "Lowering",
    "Memory",
    "Module",
    "ModuleMemory",
    "Op",
    "Part",
    "Record",
    "Recording",
    "StateBudget",
    "Timeline",
    "Workload",
    "activations_budget",
    "adamw",
    "advise",
    "calibrate",
    "ceilings_of",
    "check_fits",
    "convolve_by_columns",
    "examine",
    "length_of_activations",
    "lowering",
    "machine_card",
    "measure_ceilings",
    "memory_picture",
    "model_config",
    "nearest",
    "predict_memory",
    "predict_step",
    "record",
    "sharded_state_bytes",
    "state_budget",
    "trace_of",
    "write_trace",
]
