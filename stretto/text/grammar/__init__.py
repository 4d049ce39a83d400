"""Structured output: grammars (`stretto.core.grammar`) compiled for a tokenizer, by `llguidance`.

`Compiler` makes a `Compiled` of a `Grammar`, in milliseconds as a rule and in seconds at worst, so never in the thread
of an engine; `Compiled.matcher` is what follows one request. llguidance is imported when the first grammar comes.
"""
