"""The chart, and what writes the generated part of it.

    values ─► forms ─► capstan/{values.yaml, values.schema.json, README.md}
    the operator's table of access, the CRD, dashboards and rules ─► capstan/files

`capstan/templates` is written by hand. Knows the contract and the operator's table of access, and nothing else of it.
"""
