"""scripts/gpu-report."""

from benchmarks.gpu_report.runner import main

if __name__ == "__main__":
    main()
