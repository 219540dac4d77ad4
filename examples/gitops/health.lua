-- Argo CD's health of a FineTuneJob or a ServingPool, from its conditions: the same result as kstatus, and additionally Suspended.
local function condition(kind)
  for _, found in ipairs(obj.status.conditions or {}) do
    if found.type == kind then
      return found
    end
  end
  return {status = "Unknown", message = ""}
end

if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "The operator has not seen this spec yet"}
end

local ready, reconciling, stalled = condition("Ready"), condition("Reconciling"), condition("Stalled")
if condition("Suspended").status == "True" and ready.status ~= "True" then
  return {status = "Suspended", message = ready.message}
elseif reconciling.status == "True" then
  return {status = "Progressing", message = reconciling.message}
elseif stalled.status == "True" then
  return {status = "Degraded", message = stalled.message}
elseif ready.status == "True" then
  return {status = "Healthy", message = ready.message}
end
return {status = "Progressing", message = ready.message}
