"""Multi-level CLIP distillation (Wan and Tuytelaars, WACV 2024)."""
