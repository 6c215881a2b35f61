"""Reports: runs, sweeps and workflows as one HTML file each, which opens without a server."""
