"""The miniature's tokenizer: one token a character, so that lengths in tokens are lengths in characters."""

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, USER, ASSISTANT, END, THINK, THOUGHT = SPECIAL = (
    "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = 128
UNKNOWN = "?"

# Each special mark as one control byte, so that training text is one byte a token.
MARKS = {mark: chr(1 + i) for i, mark in enumerate(SPECIAL)}
IDS = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}

CHAT = """{% for m in messages %}{{ ('<|user|>' if m.role == 'user' else '<|assistant|>') + m.content }}\
{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""


def byte_table() -> np.ndarray:
    """uint8 (256,): token id of a byte of training text."""
    table = np.zeros(256, np.uint8)
    for token, i in IDS.items():
        table[ord(MARKS.get(token, token))] = i
    return table


def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer as vLLM and transformers load it; marks of thought stay visible, since parsers look for them."""
    inner = Tokenizer(models.WordLevel(IDS, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in (PAD, USER, ASSISTANT, END)])
    inner.add_tokens([AddedToken(m, special=False, normalized=False) for m in (THINK, THOUGHT)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, eos_token=END, unk_token=UNKNOWN,
                                   clean_up_tokenization_spaces=False, chat_template=CHAT, model_max_length=4096)
