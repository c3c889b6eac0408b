"""SmallTransformer in mlx.nn, layer for layer that of small_transformer.py."""

import mlx.core as mx
import mlx.nn as nn

NORM_EPSILON = 1e-6


class TransformerBlock(nn.Module):
    """(N, length, embed_dim) stays (N, length, embed_dim); the norm comes after the shortcut."""

    def __init__(self, embed_dim: int, num_heads: int, ff_dim: int, dropout_rate: float):
        super().__init__()
        self.attention = nn.MultiHeadAttention(embed_dim, num_heads, bias=True)
        self.attention_norm = nn.LayerNorm(embed_dim, NORM_EPSILON)
        self.widen = nn.Linear(embed_dim, ff_dim)
        self.narrow = nn.Linear(ff_dim, embed_dim)
        self.feed_forward_norm = nn.LayerNorm(embed_dim, NORM_EPSILON)
        self.dropout = nn.Dropout(dropout_rate)

    def __call__(self, inputs):
        attended = self.dropout(self.attention(inputs, inputs, inputs))
        hidden = self.attention_norm(inputs + attended)
        fed = self.dropout(self.narrow(nn.relu(self.widen(hidden))))
        return self.feed_forward_norm(hidden + fed)


class SmallTransformer(nn.Module):
    """Tokens (N, maxlen) become logits (N, num_classes); Keras' model ends in their softmax."""

    def __init__(
        self,
        maxlen: int,
        vocab_size: int,
        embed_dim: int,
        num_heads: int,
        ff_dim: int,
        num_transformer_blocks: int,
        dropout_rate: float,
        num_classes: int = 2,
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, embed_dim)
        self.positions = nn.Embedding(maxlen, embed_dim)
        self.blocks = [
            TransformerBlock(embed_dim, num_heads, ff_dim, dropout_rate)
            for _ in range(num_transformer_blocks)
        ]
        self.dropout = nn.Dropout(dropout_rate)
        self.classify = nn.Linear(embed_dim, num_classes)

    def __call__(self, tokens):
        hidden = self.tokens(tokens) + self.positions(mx.arange(tokens.shape[1]))
        for block in self.blocks:
            hidden = block(hidden)
        return self.classify(self.dropout(hidden.mean(axis=1)))
