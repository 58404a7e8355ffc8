"""What every part of the benchmark runs with.

budget        time to work within, in this process or over several
progress      the one progress bar
requirements  what to install where a library is missing
interrupts    what Ctrl-C does
result_files  JSON files of runs, and the environment that they were made in
tables        markdown tables
worker        a process that is replaced once something fails in it
side_by_side  several workers at a time
"""
