"""The trusted base: what is wrong, what lies within a budget, what is proven. Every figure rests on this room."""
