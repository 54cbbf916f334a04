"""The one cost semantics: a plan is lowered to a schedule, a schedule is priced to a timeline."""
