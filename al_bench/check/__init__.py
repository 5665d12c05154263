"""`al-bench check mine.my_strategy`: test a strategy against the rules that all strategies obey."""
