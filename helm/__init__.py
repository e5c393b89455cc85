"""The chart, and what writes the generated part of it.

    values ─► forms ─► capstan/{values.yaml, values.schema.json, README.md}
    the operator's table of access, the CRD, dashboards and rules ─► capstan/files

`capstan/templates` is written by hand. Knows the contract, the operator's configuration and table of access, and what
the dashboards generate.
"""
