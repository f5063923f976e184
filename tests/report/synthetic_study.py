"""A SYNTHETIC study: its losses are those of a Chinchilla-like surface plus noise, no model was trained."""

import math
import random
from typing import Any

# E, A, B, alpha, beta of each architecture's surface, in bits per byte.
SURFACES = {
    "transformer": (1.25, 14.0, 62.0, 0.27, 0.28),
    "mamba": (1.24, 12.6, 58.0, 0.27, 0.28),
    "rwkv": (1.26, 13.4, 60.0, 0.27, 0.28),
    "lstm": (1.35, 17.0, 64.0, 0.27, 0.27),
    "gru": (1.36, 16.2, 66.0, 0.27, 0.27),
    "reservoir": (1.60, 20.0, 66.0, 0.25, 0.26),
}
BUDGETS = [3e11, 1e12, 3e12]
TARGET = 1.2e13
NOISE = 0.009
PUBLISHED = {
    "Hoffmann et al. 2022 (Approach 3)": {"N": 0.46, "D": 0.54},
    "Kaplan et al. 2020": {"N": 0.73, "D": 0.27},
}


def _loss(surface: tuple[float, ...], parameters: float, tokens: float) -> float:
    E, A, B, alpha, beta = surface
    return E + A / parameters**alpha + B / tokens**beta


def _best(surface: tuple[float, ...], budget: float) -> float:
    sizes = [10 ** (3 + i / 100) for i in range(500)]
    return min(sizes, key=lambda parameters: _loss(surface, parameters, budget / 6 / parameters))


def _run(rng: random.Random, name: str, budget: float, parameters: float, seed: int) -> dict[str, Any]:
    tokens = budget / 6 / parameters
    width = 8 * max(2, round((parameters / 36) ** (1 / 3)))
    speed = 6.5e9 if name == "transformer" else 4.1e9
    return {
        "id": f"{name}-{budget:.0e}-w{width}-s{seed}",
        "budget": budget,
        "width": width,
        "depth": max(2, width // 24),
        "non_embedding": round(parameters),
        "total": round(parameters + 256 * width),
        "tokens": round(tokens),
        "batch_tokens": 1024,
        "length": 128,
        "learning_rate": 0.012,
        "steps": round(tokens / 1024),
        "seed": seed,
        "bits_per_byte": _loss(SURFACES[name], parameters, tokens) + rng.gauss(0, NOISE),
        "seconds": budget / speed,
        "flops": budget,
        "flops_per_second": speed,
    }


def _architecture(rng: random.Random, name: str) -> dict[str, Any]:
    surface = SURFACES[name]
    runs, minima = [], []
    for budget in BUDGETS:
        best = _best(surface, budget)
        sizes = [best * 2 ** (step - 2.4) for step in range(6)]
        runs += [_run(rng, name, budget, size, 0) for size in sizes]
        floor, center = _loss(surface, best, budget / 6 / best), math.log10(best)
        curvature = (_loss(surface, 4 * best, budget / 24 / best) - floor) / math.log10(4) ** 2
        minima.append(
            {
                "budget": budget,
                "non_embedding": best,
                "tokens": budget / 6 / best,
                "bits_per_byte": floor,
                "interior": True,
                "warning": None,
                "curve": [
                    [size, floor + curvature * (math.log10(size) - center) ** 2]
                    for size in (sizes[0] * (sizes[-1] / sizes[0]) ** (step / 20) for step in range(21))
                ],
            }
        )
    E, A, B, alpha, beta = surface
    law = {"E": E, "A": A, "B": B, "alpha": alpha, "beta": beta}
    best = _best(surface, TARGET)
    predicted = _loss(surface, best, TARGET / 6 / best)
    return {
        "runs": runs,
        "minima": minima,
        "law": {
            **law,
            "intervals": {key: [value * 0.86, value * 1.15] for key, value in law.items()},
            "identified": dict.fromkeys(law, True),
            "residual": 0.0042,
            "notes": [],
        },
        "exponents": {
            "N": {"value": beta / (alpha + beta), "interval": [0.47, 0.56]},
            "D": {"value": alpha / (alpha + beta), "interval": [0.44, 0.53]},
            "identified": True,
            "source": "the fitted law: a = β / (α + β), b = α / (α + β)",
            "published": PUBLISHED,
        },
        "prediction": {
            "budget": TARGET,
            "non_embedding": best,
            "tokens": TARGET / 6 / best,
            "bits_per_byte": predicted,
            "interval": [predicted - 0.035, predicted + 0.041],
        },
    }


def synthetic_study(names: tuple[str, ...] = ("transformer", "mamba")) -> dict[str, Any]:
    """A finished synthetic study of `names`, the same every time."""
    rng = random.Random(1)
    found = {name: _architecture(rng, name) for name in names}
    verdicts = []
    for index, budget in enumerate(BUDGETS):
        order = sorted(names, key=lambda name: found[name]["minima"][index]["bits_per_byte"])
        losses = [found[name]["minima"][index]["bits_per_byte"] for name in order]
        margin = losses[1] - losses[0] if len(order) > 1 else None
        verdicts.append(
            {
                "budget": budget,
                "ahead": order[0] if len(order) > 1 else None,
                "margin_bits_per_byte": margin,
                "noise_bits_per_byte": 2 * NOISE,
                "text": f"{order[0]} is ahead of {order[1]} by {margin:.3f} bits per byte, "
                f"beyond the noise of {2 * NOISE:.3f}"
                if margin
                else "one architecture: nothing to compare",
            }
        )
    best = min(names, key=lambda name: found[name]["prediction"]["bits_per_byte"])
    prediction = found[best]["prediction"]
    achieved = prediction["bits_per_byte"] - 0.021
    plan = _run(rng, best, TARGET, prediction["non_embedding"], 0)
    recommended = {key: plan[key] for key in ("width", "depth", "non_embedding", "total", "tokens")} | {
        key: plan[key] for key in ("batch_tokens", "length", "learning_rate", "steps", "budget")
    }
    tokens = recommended["tokens"]
    curve = [
        [
            round(tokens * (i + 1) / 40),
            achieved + 3.4 / (1 + i) ** 0.85 - 3.4 / 40**0.85 + rng.gauss(0, 0.004),
        ]
        for i in range(40)
    ]
    curve[-1][1] = achieved
    return {
        "format": 1,
        "verim_version": "0.1.0",
        "created": "2026-11-22T02:38:11+00:00",
        "corpus": {
            "name": "SYNTHETIC: no text was read",
            "paths": ["/usr/lib/python3.11"],
            "documents": 671,
            "skipped": 3,
            "duplicates": 12,
            "bytes": 12_345_678,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "train_bytes": 11_200_000,
            "held_out_bytes": 1_145_678,
            "held_out_documents": 61,
        },
        "machine": {
            "processor": "Synthetic Processor 9000 @ 2.60GHz",
            "cores": 2,
            "threads": 2,
            "memory_bytes": 8_215_000_000,
            "os": "Linux 6.1",
            "python": "3.11.2",
            "torch": "2.13.0+cpu",
            "numba": "0.68.1",
            "gpu": None,
            "copy_bytes_per_second": 9.7e9,
            "matmul_flops_per_second": {"float32": 1.31e11, "bfloat16": 3.4e10},
            "launch_seconds": 3.1e-6,
        },
        "options": {"minutes": 5.0, "target_minutes": 2.0, "architectures": list(names), "seed": 0},
        "conventions": {
            "flops": "A multiply-add is 2 FLOPs; causal attention counts the lower triangle only; "
            "forward and backward are both counted.",
            "parameters": "N is non_embedding: all weights but the input embedding.",
            "loss": "Bits per byte on the held-out documents.",
        },
        "rules": {
            "depth": "one block for every 24 channels (a synthetic rule)",
            "schedule": "2 % warm-up, then constant, then linear to zero",
        },
        "epochs": 0.43,
        "budgets": BUDGETS,
        "architectures": found,
        "noise": {
            "standard_deviation_bits_per_byte": NOISE,
            "runs": [
                {
                    "architecture": name,
                    "budget": BUDGETS[0],
                    "width": 48,
                    "seeds": [0, 1],
                    "bits_per_byte": [2.871, 2.884],
                }
                for name in names
            ],
        },
        "verdicts": verdicts,
        "recommended": {
            "architecture": best,
            **recommended,
            "heads": 4 if best == "transformer" else None,
            "seconds": 120.0,
        },
        "predicted_bits_per_byte": prediction["bits_per_byte"],
        "interval": prediction["interval"],
        "achieved_bits_per_byte": achieved,
        "relative_error": abs(achieved / prediction["bits_per_byte"] - 1),
        "target": {
            "curve": curve,
            "seconds": 118.4,
            "sample": {
                "prompt": "def ",
                "text": "read(self, name):\n        if self.file:\n            return self._name\n"
                '        """Return the number of the strings."""\n        for key in self.keys():\n'
                "            self.assertEqual(key, value)\n        return <b>value</b>\n\n"
                "    def test_set(self):\n        with self.assertRaises(ValueError):\n            pass\n",
            },
        },
        "seconds": {
            "total": 421.7,
            "parts": {
                "corpus": 1.4,
                "calibration": 6.2,
                "ladder": 286.0,
                "fit": 6.1,
                "target": 119.9,
                "page": 0.7,
            },
        },
        "warnings": [],
    }
