"""`al-bench check mine.my_strategy`: the rules that every strategy obeys, and the inputs they are tried on."""
