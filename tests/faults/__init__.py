"""What a study must survive: kills, full disks, other runs, long ones. Run by `make test-faults`."""
