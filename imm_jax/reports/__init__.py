"""What is read from workdirs: analyses, comparisons, pages, cards."""
