"""The contract between all parts of Capstan: names, resource, engine arguments, limits, metrics.

Everybody may import this package; it imports no other part and nothing heavier than pydantic.
"""
