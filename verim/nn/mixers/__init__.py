"""Mixers: layers that mix along the sequence, all behind one call."""

from verim.nn.mixers.attention import Attention, AttentionConfig
from verim.nn.mixers.attention_state import AttentionState
from verim.nn.mixers.gru import GRU, GRUConfig
from verim.nn.mixers.lstm import LSTM, LSTMConfig, LSTMState
from verim.nn.mixers.mamba import Mamba, MambaConfig, MambaState
from verim.nn.mixers.mamba2 import Mamba2, Mamba2Config, Mamba2State
from verim.nn.mixers.min_gru import MinGRU, MinGRUConfig
from verim.nn.mixers.min_lstm import MinLSTM, MinLSTMConfig
from verim.nn.mixers.minimal import MinimalState
from verim.nn.mixers.mixer import Mixer
from verim.nn.mixers.recurrent import HiddenState
from verim.nn.mixers.rnn import RNN, RNNConfig
from verim.nn.mixers.rwkv4 import RWKV4, RWKV4Config, RWKV4State
from verim.nn.mixers.rwkv7 import RWKV7, RWKV7Config, RWKV7State
from verim.nn.mixers.s4d import S4D, S4DConfig, S4DState

MIXERS: dict[str, type] = {
    "attention": AttentionConfig,
    "mamba": MambaConfig,
    "mamba2": Mamba2Config,
    "rwkv4": RWKV4Config,
    "rwkv7": RWKV7Config,
    "rnn": RNNConfig,
    "gru": GRUConfig,
    "lstm": LSTMConfig,
    "min_gru": MinGRUConfig,
    "min_lstm": MinLSTMConfig,
    "s4d": S4DConfig,
}
"""The kinds of mixers, by their name in a configuration."""

__all__ = [
    "GRU",
    "LSTM",
    "MIXERS",
    "RNN",
    "RWKV4",
    "RWKV7",
    "S4D",
    "Attention",
    "AttentionConfig",
    "AttentionState",
    "GRUConfig",
    "HiddenState",
    "LSTMConfig",
    "LSTMState",
    "Mamba",
    "Mamba2",
    "Mamba2Config",
    "Mamba2State",
    "MambaConfig",
    "MambaState",
    "MinGRU",
    "MinGRUConfig",
    "MinLSTM",
    "MinLSTMConfig",
    "MinimalState",
    "Mixer",
    "RNNConfig",
    "RWKV4Config",
    "RWKV4State",
    "RWKV7Config",
    "RWKV7State",
    "S4DConfig",
    "S4DState",
]
