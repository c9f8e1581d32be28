"""Published EAGLE-3 checkpoints: the layouts in which others train drafters and serve ours.

`eagle3` is the layout of SafeAILab's EAGLE, SpecForge and SGLang; `speculators` is that of
vLLM's speculators library.
"""
