"""What every room uses: errors, files, progress, locks."""
