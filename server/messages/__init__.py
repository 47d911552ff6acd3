"""API messages to engine types and back, one module per message family.

Only what a message can say and the engine's types cannot is checked here: a name given twice, a value that is not set.
What the engine checks, it alone checks. Every refusal is a `CallerError` that names the field.
"""
