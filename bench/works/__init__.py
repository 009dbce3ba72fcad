"""The works measured; each module's `cells` yields what is to be compared, contender by contender."""
