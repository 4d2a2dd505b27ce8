"""What our speed is measured against: published algorithms, written from their papers and sheets."""
