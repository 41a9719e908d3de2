"""What every part stands on, and nothing a part could own: clock, tasks, part, platform, settings, errors, telemetry,
certificates, atomic files.
"""
