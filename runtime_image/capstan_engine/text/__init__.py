"""Between text and token ids: tokenizer, chat template, incremental detokenization, stop strings.

Lives in the front end process only; the engine core never sees a string. Knows no HTTP and no request schema.
"""

from capstan_engine.text.chat_template import ChatTemplate, Message
from capstan_engine.text.detokenizer import ByteLevelDetokenizer, Detokenizer, WindowDetokenizer
from capstan_engine.text.stop_strings import StopStrings
from capstan_engine.text.tokenizer import Tokenizer

__all__ = [
    "ByteLevelDetokenizer",
    "ChatTemplate",
    "Detokenizer",
    "Message",
    "StopStrings",
    "Tokenizer",
    "WindowDetokenizer",
]
