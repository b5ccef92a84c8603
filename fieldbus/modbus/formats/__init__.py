"""What lies in registers beside plain numbers: digits, signs, text, calendar fields."""
