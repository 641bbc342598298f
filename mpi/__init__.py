"""The program under mpirun: launch lines, devices, the hand-out of runs, and the work of a rank."""
