"""Code Llama and Llama-2 behind Azure-ML-style endpoints: contract, prompts, engine, carriers."""
