package services

// SetGatewayPorts makes s give out other gateway ports.
func (s *Store) SetGatewayPorts(first, count int) { s.ports = portRange{first, count} }

// ParseSnapshot reads what Save wrote.
var ParseSnapshot = parseSnapshot
