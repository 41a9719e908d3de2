"""Authentication, authorization (RBAC) and admission."""
