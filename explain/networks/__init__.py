"""Networks: their architecture, weights and preprocessing, the fast form, running them; knows data."""
