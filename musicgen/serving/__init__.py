"""What the predictors need around Cog: worker threads, result files, uploads, logging."""
