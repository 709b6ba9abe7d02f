source tools/common.sh
export METAL_SDPA_VENV=/work/main/.venv
stage macos tools/cross_macos.sh
stage arm64 tools/test_arm64.sh
stage tsan tools/sanitize.sh tsan
stage smasan tools/sanitize.sh software-metal-asan
stage asan tools/sanitize.sh asan
finish_stages
