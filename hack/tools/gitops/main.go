// Command gitops says what GitOps tools make of an object: one JSON object a line on stdin, one verdict a line on stdout.
//
// kstatus is computed by cli-utils' own package, which kubectl plugins, Flux and kpt share; Argo CD's health by running the
// Lua script that is given as the only argument in gopher-lua, which is the interpreter of Argo CD.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type opinion struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type verdict struct {
	Kstatus opinion `json:"kstatus"`
	Argo    opinion `json:"argo"`
}

func main() {
	if len(os.Args) != 2 {
		fail(fmt.Errorf("usage: gitops HEALTH.lua < objects.jsonl"))
	}
	script, err := os.ReadFile(os.Args[1])
	fail(err)
	output := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 4<<20) // etcd takes no larger object
	for lines.Scan() {
		object := unstructured.Unstructured{}
		fail(object.UnmarshalJSON(lines.Bytes()))
		found, err := status.Compute(&object)
		fail(err)
		argo, err := health(string(script), object.Object)
		fail(err)
		fail(output.Encode(verdict{opinion{string(found.Status), found.Message}, argo}))
	}
	fail(lines.Err())
}

// health runs the script as Argo CD does: a state of its own with few libraries, the object as the global obj, and a table
// with status and message as the answer.
func health(script string, object map[string]any) (opinion, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable, lua.LoadLibName: lua.OpenPackage,
	} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			return opinion{}, err
		}
	}
	state.SetGlobal("obj", value(state, object))
	if err := state.DoString(script); err != nil {
		return opinion{}, err
	}
	table, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return opinion{}, fmt.Errorf("the script returned %s, not a table", state.Get(-1).Type())
	}
	return opinion{lua.LVAsString(table.RawGetString("status")), lua.LVAsString(table.RawGetString("message"))}, nil
}

// value is decoded JSON as Lua sees it; arrays count from one.
func value(state *lua.LState, decoded any) lua.LValue {
	switch decoded := decoded.(type) {
	case bool:
		return lua.LBool(decoded)
	case int64:
		return lua.LNumber(decoded)
	case float64:
		return lua.LNumber(decoded)
	case string:
		return lua.LString(decoded)
	case []any:
		table := state.NewTable()
		for _, item := range decoded {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for key, item := range decoded {
			table.RawSetString(key, value(state, item))
		}
		return table
	default:
		return lua.LNil
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "gitops:", err)
		os.Exit(1)
	}
}
