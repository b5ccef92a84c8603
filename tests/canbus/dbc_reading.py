"""Reads DBC texts without a process, for tests."""

from fieldbus.canbus.database import dbc_draft, dbc_text
from fieldbus.canbus.database.draft import Notes, repair

SIGNAL = ' SG_ S : 0|8@1+ (1,0) [0|0] "" X\n'


def read(text):
    """Return the messages of a text by name, and the notes as (line, text)."""
    notes = Notes()
    messages = repair(dbc_draft.drafts(dbc_text.parse(text, notes), notes), notes)
    return messages, [(note.line, note.text) for note in notes.ordered()]


def one(text):
    """Return the only message of a text, and the texts of the notes."""
    (message,), notes = read(text)
    return message, [text for _, text in notes]


def signals(message):
    return [signal.name for signal in message.signals]


def conditions(message):
    return {
        signal.name: [(selector.name, ranges) for selector, ranges in signal.condition]
        for signal in message.signals
    }
