"""Write a trained model in a form that peft or transformers loads without balora."""
