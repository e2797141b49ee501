"""What happens beside a run of mmengine: averages, logs, files, and the teacher."""
