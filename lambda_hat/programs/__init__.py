"""The compiled programs of a process, which it shares with other processes; its cores and its memory."""
