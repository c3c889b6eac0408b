"""SmallTransformer, a text classifier of few parameters, from Keras 3 layers that can be saved."""

import keras
from keras import layers


@keras.saving.register_keras_serializable("small_transformer")
class TokenAndPositionEmbedding(layers.Layer):
    """The sum of a learned vector per token and one per position.

    Tokens (N, up to maxlen) from 0 to below `vocab_size` become (N, the same, embed_dim).
    """

    def __init__(self, maxlen: int, vocab_size: int, embed_dim: int, **kwargs):
        super().__init__(**kwargs)
        self.config = dict(maxlen=maxlen, vocab_size=vocab_size, embed_dim=embed_dim)
        self.tokens = layers.Embedding(vocab_size, embed_dim)
        self.positions = layers.Embedding(maxlen, embed_dim)

    def build(self, input_shape):
        self.tokens.build(input_shape)
        self.positions.build(input_shape[1:])

    def call(self, tokens):
        positions = keras.ops.arange(keras.ops.shape(tokens)[1])
        return self.tokens(tokens) + self.positions(positions)

    def get_config(self):
        return super().get_config() | self.config


@keras.saving.register_keras_serializable("small_transformer")
class TransformerBlock(layers.Layer):
    """Self-attention, then a two-layer feed-forward network, each with dropout, shortcut and norm.

    (N, length, embed_dim) stays (N, length, embed_dim). The norm comes after the shortcut, as in
    Vaswani et al., "Attention Is All You Need", 2017. `embed_dim` is divided among the heads.
    """

    def __init__(self, embed_dim: int, num_heads: int, ff_dim: int, dropout_rate: float, **kwargs):
        super().__init__(**kwargs)
        self.config = dict(
            embed_dim=embed_dim, num_heads=num_heads, ff_dim=ff_dim, dropout_rate=dropout_rate
        )
        self.attention = layers.MultiHeadAttention(num_heads, key_dim=embed_dim // num_heads)
        self.attention_dropout = layers.Dropout(dropout_rate)
        self.attention_norm = layers.LayerNormalization(epsilon=1e-6)
        self.widen = layers.Dense(ff_dim, activation="relu")
        self.narrow = layers.Dense(embed_dim)
        self.feed_forward_dropout = layers.Dropout(dropout_rate)
        self.feed_forward_norm = layers.LayerNormalization(epsilon=1e-6)

    def build(self, input_shape):
        self.attention.build(input_shape, input_shape)
        self.attention_norm.build(input_shape)
        self.widen.build(input_shape)
        self.narrow.build((*input_shape[:-1], self.config["ff_dim"]))
        self.feed_forward_norm.build(input_shape)

    def call(self, inputs, training=None):
        attended = self.attention_dropout(self.attention(inputs, inputs), training=training)
        hidden = self.attention_norm(inputs + attended)
        fed = self.feed_forward_dropout(self.narrow(self.widen(hidden)), training=training)
        return self.feed_forward_norm(hidden + fed)

    def get_config(self):
        return super().get_config() | self.config


def small_transformer(
    maxlen: int,
    vocab_size: int,
    embed_dim: int,
    num_heads: int,
    ff_dim: int,
    num_transformer_blocks: int,
    dropout_rate: float,
    num_classes: int = 2,
) -> keras.Model:
    """A model from tokens (N, maxlen) to probabilities (N, num_classes)."""
    tokens = keras.Input((maxlen,), dtype="int32")
    hidden = TokenAndPositionEmbedding(maxlen, vocab_size, embed_dim)(tokens)
    for _ in range(num_transformer_blocks):
        hidden = TransformerBlock(embed_dim, num_heads, ff_dim, dropout_rate)(hidden)
    pooled = layers.Dropout(dropout_rate)(layers.GlobalAveragePooling1D()(hidden))
    # Float32 in every precision: probabilities close to 0 need it.
    outputs = layers.Dense(num_classes, activation="softmax", dtype="float32")(pooled)
    return keras.Model(tokens, outputs, name="small_transformer")
