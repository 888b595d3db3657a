"""The six steps: functions of validated parameters and input folders that write one output folder."""
