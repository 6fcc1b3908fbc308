"""Provisioners: where replicas run. Local processes; Ray and Kubernetes behind the same small interface."""
